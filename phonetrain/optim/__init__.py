"""What moves the weights: optimizers.py (torch's, in parameter groups), schedule.py and lr_curves.py (the learning
rate of every step), loss_scale.py (fp16)."""
