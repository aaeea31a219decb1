"""The measurements that decide the next engine: a static plan of cuDNN convolutions against torch.compile."""
