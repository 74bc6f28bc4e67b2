"""What is measured on tasks."""
