"""Ray pipelines: the only place in zsad that imports ray."""
