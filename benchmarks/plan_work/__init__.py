"""What whole networks amount to as plans."""
