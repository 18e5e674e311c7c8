"""Wire to named arrays and back. Pure: no server, no client, no I/O, and neither kserve nor tritonclient."""
