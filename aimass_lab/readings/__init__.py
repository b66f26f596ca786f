"""Live readings of this machine: GPU, processor, memory, network, energy; what cannot be read says why."""
