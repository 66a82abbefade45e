"""Commands, health, metrics and a web page over HTTP."""
