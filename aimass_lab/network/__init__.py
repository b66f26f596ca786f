"""What a model puts on a network: requests, copies between host and device, and traffic between devices."""
