"""What tells people what runs inside of a loop. Nothing of it is imported unless somebody asks."""
