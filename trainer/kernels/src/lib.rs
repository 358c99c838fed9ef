//! Tensor ops with true gradients: forward, backward and a CPU reference each.
