"""The web page in real Chromium; a package, so that the browser ends with it and not with the whole suite."""
