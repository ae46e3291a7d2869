"""What training costs: multiply-adds, parameters, activation memory, and how timings are taken."""
