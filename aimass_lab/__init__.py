"""Profile, shrink, plan and serve a PyTorch model without leaving the notebook."""
