"""OpenMythos: prelude, one block that is looped, coda."""
