"""Simulations from the outside: files, processes, pictures, daemons to compare with. The simulator itself is pure."""
