# METADATA
# title: Two-factor authentication
# description: True when the caller proved two different kinds of factor, or a trusted provider says so.
package lib.mfa

default satisfied := false

satisfied if input.authn.mfa == true

# Two entries of `amr` may be of one kind (a password and a PIN are both knowledge), so kinds are counted.
satisfied if count({factor | some factor in input.authn.factors}) >= 2
