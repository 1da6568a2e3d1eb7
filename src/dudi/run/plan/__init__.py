"""What a run will take, before anything is paid for: memory, time, money, disk, and what its limits cut."""
