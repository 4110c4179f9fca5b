"""What stands behind the notebook: data, recipes, training, measurements and figures."""
