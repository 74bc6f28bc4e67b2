"""File formats of labelled images, each read as a :class:`~metafew.data.formats.collection.Collection`."""
