"""What the shop keeps in Django's own database."""

from typing import ClassVar

from django.db import models


class Invoice(models.Model):
    """What an order's customer is asked to pay. Written by `orders.tasks.write_invoice` only."""

    order = models.CharField(max_length=24, unique=True)
    customer = models.CharField(max_length=200)
    amount = models.IntegerField(default=0)
    fence = models.BigIntegerField(default=0)
    """Of the run that wrote the invoice: an older one changes nothing."""

    def __str__(self) -> str:
        return f"{self.customer}: {self.amount}"


class ReactiveRecord(models.Model):
    """An entry of the admin without a table: its page asks `celery_reactive`."""

    class Meta:
        """Nothing to migrate, and nothing to allow but to look."""

        managed = False
        default_permissions: ClassVar = ("view",)
        verbose_name = "reactive record"

    def __str__(self) -> str:
        return "reactive record"
