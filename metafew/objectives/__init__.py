"""What a training step minimises. One objective a file."""
