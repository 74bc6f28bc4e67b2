"""A model's predictions for a folder of images: accuracy where their classes are given, a contact sheet, and a page."""
