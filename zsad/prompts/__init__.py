"""Words for the text tower: states, templates and the ensembles made of them."""
