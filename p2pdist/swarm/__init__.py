"""What both engines share: attestations, proof, the plan of an image, leases held, and the engine Protocol."""
