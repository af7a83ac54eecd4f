"""The job under faults: processes and nodes are killed at drawn moments, and no row may be lost or doubled."""
