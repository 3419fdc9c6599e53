"""Many cases: processes, devices, locks, and the record of what is done."""
