"""Reports about running loops. Its modules are imported when they are first used."""
