"""What the site of ``make docs`` has in addition to ``docs/``: the pages of the top folder, and the reference.

MkDocs calls the functions, and mkdocstrings the class, as ``mkdocs.yml`` says. Nothing is imported from the package but
the names of its components: the reference is read from the source.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from metafew import backbones, heads, norms
from metafew.config.components import component_classes

ROOT = Path(__file__).parents[1]
TOP = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the top folder, and what they are called on the site."""
LINK = re.compile(r"(?P<text>\[[^]]*\])\((?P<target>[^)\s]+)\)")
ROLE = re.compile(r":\w+:`(?:[^`<]*<)?(?P<short>~?)(?P<path>[\w.]+)>?`")
RETURNED = {
    "What the functions return": [
        "metafew.training.start.Run",
        "metafew.api.results.Evaluation",
        "metafew.api.results.Classification",
        "metafew.inference.Model",
        "metafew.inference.Task",
        "metafew.episode.Episode",
        "metafew.episode.Labelled",
    ],
    "Norms in a network of your own": ["metafew.norms.convert.convert", "metafew.norms.running.task_scope"],
    "Errors": ["metafew.errors.UsageError", "metafew.errors.Diverged"],
}
PACKAGE = """\
    options:
      show_root_heading: false
      show_root_toc_entry: false
      filters: ["!^_", "!^ROOMS$", "!^NAMES$"]
""".splitlines()
"""How the functions of the package are described."""
CLASS = """\
    options:
      members: false
""".splitlines()
"""How a component is described: by its constructor, as its methods are those of its base class."""
COMPONENTS = {
    "Heads": ("head", heads.BASES),
    "Norms": ("norm", norms.BASES),
    "Backbones": ("backbone", backbones.BASES),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the top folder and those of the reference."""
    for name, page in TOP.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for page, content in reference().items():
        files.append(File.generated(config, page, content=content))
    return files


def reference() -> dict[str, str]:
    """Return the pages of the reference, by their file."""
    pages = {"reference.md": describe("Reference", {"Functions": ["metafew"], **RETURNED})}
    for title, (group, bases) in COMPONENTS.items():
        options = sorted(component_classes(group).values(), key=lambda path: path.rpartition(".")[2].lower())
        sections = {f"What {group}= chooses": options, "To derive from": [*bases]}
        pages[f"reference_{title.lower()}.md"] = describe(title, sections)
    return pages


def describe(title: str, sections: Mapping[str, Sequence[str]]) -> str:
    """Return a page that describes the classes and functions of dotted paths, in sections."""
    components = {path for group, _ in COMPONENTS.values() for path in component_classes(group).values()}
    lines = [f"# {title}", ""]
    for heading, paths in sections.items():
        lines += [f"## {heading}", ""]
        for path in paths:
            lines += [f"::: {path}", *(PACKAGE if path == "metafew" else CLASS if path in components else []), ""]
    return "\n".join(lines)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page with its links, which lead to files of the repository, leading to pages of the site."""
    source = {site: name for name, site in TOP.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def on_site(link: re.Match) -> str:
        target, hash_sign, anchor = link["target"].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        found = TOP.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(found) is None:
            # A file of the code, which the site does not have; MkDocs refuses a link that leads nowhere.
            return link["text"][1:-1] if (ROOT / path).exists() else link[0]
        relative = posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or ".")
        return f"{link['text']}({relative}{hash_sign}{anchor})"

    return LINK.sub(on_site, markdown)


class Docstrings(griffe.Extension):
    """Read the roles of Sphinx in docstrings as links, and ``::`` as the colon before an example."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            text = ROLE.sub(as_link, obj.docstring.value)
            obj.docstring.value = re.sub(r"::\n\n(?= )", ":\n\n", text)


def as_link(role: re.Match) -> str:
    """Return a link to what a role names; mkdocstrings leaves it out where the site does not describe it."""
    shown = role["path"].rpartition(".")[2] if role["short"] else role["path"]
    return f'<autoref identifier="{role["path"]}" optional><code>{shown}</code></autoref>'
