"""The wire contract: topics and messages. Nothing here knows MQTT or files."""
