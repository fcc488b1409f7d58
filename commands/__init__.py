"""What each command takes and shows; the work is in ``pipeline``. Heavy imports wait for a call."""
