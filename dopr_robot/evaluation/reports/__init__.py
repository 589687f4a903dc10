"""What people look at: plots, pages, pictures, videos, and descriptions of what lies on the disk."""
