"""What a request leaves behind to be measured by."""
