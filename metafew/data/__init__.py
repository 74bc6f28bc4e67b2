"""Images, tasks and how they reach the model."""
