"""What differs between tasks: how an exit's output becomes an answer and a basis for deciding."""
