"""The command line: parse, call, print, exit code. No logic; heavy imports inside the commands."""
