"""The network and its cache as they run at inference."""
