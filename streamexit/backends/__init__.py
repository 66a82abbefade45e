"""Where stages run. A backend computes; it never decides."""
