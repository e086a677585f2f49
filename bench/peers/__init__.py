"""What stands on the other side, and beside: the C sink and limits, and the drivers of other clients."""
