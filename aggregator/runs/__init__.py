"""A run: its life from signed plan to last model, plan files, metrics, model export."""
