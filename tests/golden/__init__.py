"""Golden vectors: tensors of other implementations that ours must reproduce.

``python -m tests.golden FILE...`` rebuilds each file's case through the public classes and operations and compares
every expected tensor. ``cases/`` holds one function a kind of file and ``table.py`` says which; the vectors lie in one
folder a method.
"""
