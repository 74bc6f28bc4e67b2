"""File formats that hold images of classes, each read as a :class:`~metafew.data.formats.collection.Collection`."""
