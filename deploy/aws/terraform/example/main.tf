# One Region of a grid: a core cluster with collectors in the network's account, a cluster of units in another account.
# A second Region is the same with another provider.

terraform {
  required_version = ">= 1.7"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100"
    }
  }
}

variable "region" {
  type        = string
  description = "The Region."
}

variable "zones" {
  type        = list(string)
  description = "Three of its zones."
}

variable "organization_id" {
  type        = string
  description = "The organisation, o-..."
}

variable "units_ou" {
  type        = object({ id = string, arn = string })
  description = "The organisational unit with the accounts of units."
}

variable "units_account" {
  type        = string
  description = "One account of units, for its cluster."
}

variable "owner_account" {
  type        = string
  description = "The account of the network, where this runs."
}

variable "deployer" {
  type        = string
  description = "ARN of the role of the pipeline."
}

variable "collector_image" {
  type        = string
  description = "The collector, by digest."
}

variable "vendor" {
  type        = object({ endpoint = string, secret = string })
  description = "OTLP over HTTP at the vendor, and the ARN of the secret with its key."
}

variable "s3_prefix_list" {
  type        = string
  description = "Prefix list of S3 in the Region."
}

provider "aws" {
  region = var.region
}

provider "aws" {
  alias  = "units"
  region = var.region
  assume_role {
    role_arn = "arn:aws:iam::${var.units_account}:role/OrganizationAccountAccessRole"
  }
}

locals {
  grid = "trellis"
  account = {
    OrganizationId     = var.organization_id
    DeployerPrincipal  = var.deployer
    BootstrapPrincipal = var.deployer
  }
  network = module.network.outputs
  cluster = {
    Domain                = local.network["Domain"]
    VpcId                 = local.network["VpcId"]
    InstanceSecurityGroup = local.network["InstanceSecurityGroup"]
    LakeBucket            = module.data.outputs["LakeBucket"]
    BundleBucket          = module.data.outputs["BundleBucket"]
    RegistryAccount       = var.owner_account
  }
}

module "account" {
  source     = "../account"
  grid       = local.grid
  parameters = local.account
}

module "network" {
  source = "../network"
  grid   = local.grid
  parameters = {
    Domain         = "trellis.internal"
    OrganizationId = var.organization_id
    ShareWith      = var.units_ou.arn
    Zones          = join(",", var.zones)
    S3PrefixList   = var.s3_prefix_list
  }
  depends_on = [module.account]
}

module "data" {
  source     = "../data"
  grid       = local.grid
  parameters = { OrganizationId = var.organization_id }
  depends_on = [module.account]
}

module "peony" {
  source     = "../cluster"
  grid       = local.grid
  flower     = "peony"
  parameters = merge(local.cluster, { Kind = "core", Subnets = local.network["CoreSubnets"], MemoryInstances = "yes" })
}

module "telemetry" {
  source = "../telemetry"
  grid   = local.grid
  flower = "peony"
  parameters = {
    OrganizationId = var.organization_id
    CollectorImage = var.collector_image
    VendorEndpoint = var.vendor.endpoint
    VendorSecret   = var.vendor.secret
  }
  depends_on = [module.peony]
}

module "accounts_of_units" {
  source               = "../account"
  grid                 = local.grid
  organizational_units = [var.units_ou.id]
  region               = var.region
  parameters = merge(local.account, {
    LogDestination = module.telemetry.outputs["LogDestinationArn"]
    MetricSink     = module.telemetry.outputs["MetricSinkArn"]
  })
}

module "tulip" {
  source     = "../cluster"
  providers  = { aws = aws.units }
  grid       = local.grid
  flower     = "tulip"
  parameters = merge(local.cluster, { Kind = "unit", Subnets = local.network["UnitSubnets"], GeneralInstances = "yes" })
  depends_on = [module.accounts_of_units]
}
