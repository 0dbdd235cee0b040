"""The decision core of a node: pure state machines that take events and time and return actions."""
