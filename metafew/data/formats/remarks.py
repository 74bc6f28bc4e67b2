"""Remarks for the user on the images of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def remarks(seen: Mapping[str, Any]) -> list[str]:
    """Return a remark on each notable property of images.

    Args:
        seen: :attr:`~metafew.data.formats.conversion.Conversion.seen` of all images.
    """
    images, found = seen.get("images", 0), []
    if seen.get("cut_away", 0) > 1 / 3 or seen.get("most_cut_away", 0) > 1 / 2:
        found.append(
            f"expected images that are almost square with dataset.fit=crop, got {seen['cropped']} of {images} that are "
            f"cropped: {seen['cut_away']:.0%} of an image is cut away on average, and {seen['most_cut_away']:.0%} of "
            "the most cropped one: type dataset.fit=stretch or dataset.fit=pad to keep whole images"
        )
    if seen.get("deep"):
        found += _remarks_on_range(seen)
    if seen.get("transparent") and seen.get("constant"):
        found.append(
            f"expected {seen['transparent']} transparent images to be visible on their background, got "
            f"{seen['constant']} images of a single colour: type dataset.background=white or dataset.background=black, "
            "or give the files a background"
        )
    elif seen.get("constant"):
        found.append(
            f"expected images with content, got {seen['constant']} of {images} of a single colour: look at them in the "
            "folder, and take out those that are empty"
        )
    if seen.get("further_frames"):
        found.append(
            f"expected one picture in each file, got {seen['further_frames']} of {images} with further pages or "
            "frames, of which the first is read: save the others as files of their own if they are needed"
        )
    return found


def _remarks_on_range(seen: Mapping[str, Any]) -> list[str]:
    """Return the remarks on images of more than 8 bits."""
    found, low, high, white = [], seen["smallest"], seen["largest"], seen["white"]
    if min(high, white) - max(low, 0) < white / 8:
        better = high if white <= 255 else 2 ** int(max(high, 1)).bit_length() - 1  # as with 10, 12 or 14 bits
        advice = f"type dataset.white={better:g}"
        if seen.get("upper_bytes") or max(low, 0) > high / 2:
            advice = "convert the files to 8 bits"
        found.append(
            f"expected images of more than 8 bits to use the range from 0 to white, {white:g}, got only {low:g} to "
            f"{high:g}, of which {round((min(high, white) - max(low, 0)) / white * 255) + 1} of 256 grey levels are "
            f"left: {advice}"
        )
    elif 2 * seen.get("dim", 0) > seen["deep"]:
        found.append(
            f"expected images of more than 8 bits to use the range from 0 to white, {white:g}, got {seen['dim']} of "
            f"{seen['deep']} that stay below 1/8 of it: type dataset.white=NUMBER"
        )
    for key, problem in {
        "not_finite": "pixels that are not finite, which are stored as 0",
        "below_0": f"pixels below 0, down to {low:g}, which are stored as 0",
        "above_white": f"pixels above white, up to {high:g}, which are stored as white",
    }.items():
        if seen.get(key):
            found.append(
                f"expected pixels from 0 to white, {white:g}, got {seen[key]} of {seen['deep']} images with {problem}: "
                + ("type dataset.white=NUMBER" if key == "above_white" else "rescale the files")
            )
    return found
