"""How the cases are rebuilt: one function a kind of file, through the public classes and operations."""
