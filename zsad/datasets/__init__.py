"""Where images come from: readers of public data sets and folders, and the procedural generator `synthetic`."""
