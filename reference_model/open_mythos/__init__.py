"""OpenMythos: prelude, one looped block with experts, coda."""
