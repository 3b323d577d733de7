"""The invoices' table, and an entry of the admin that has none."""

from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    """As `manage.py makemigrations` has it."""

    initial = True
    dependencies: ClassVar = []
    operations: ClassVar = [
        migrations.CreateModel(
            name="Invoice",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("order", models.CharField(max_length=24, unique=True)),
                ("customer", models.CharField(max_length=200)),
                ("amount", models.IntegerField(default=0)),
                ("fence", models.BigIntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name="ReactiveRecord",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
            ],
            options={"verbose_name": "reactive record", "managed": False, "default_permissions": ("view",)},
        ),
    ]
