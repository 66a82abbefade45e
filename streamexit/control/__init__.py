"""Commands: the same code behind MQTT and HTTP."""
