"""Threads, cores, memory and admission control, independent of photos and HTTP."""
