"""What training costs: multiply-adds, parameters, activation memory, hours, and how timings are taken."""
