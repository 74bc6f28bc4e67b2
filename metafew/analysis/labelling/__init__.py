"""What a model says about a folder of images: accuracy where their classes are given, a contact sheet, and a page."""
