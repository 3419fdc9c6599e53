"""Many cases: processes, devices, claims, and the record of what is done."""
